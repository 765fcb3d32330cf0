"""The teacher of self-training: a slow copy of the student that labels the target for it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import torch
from timm.layers import DropPath  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.swa_utils import get_ema_multi_avg_fn

from adaptseg.errors import AdaptSegError
from adaptseg.networks.segmenter import Segmenter

TeacherNorm = Literal["copied", "batch"]
Network = TypeVar("Network", bound=nn.Module)


class EMATeacher(nn.Module, Generic[Network]):
    """An exponential moving average of a student's parameters (Tarvainen and Valpola, NeurIPS 2017; as in DACS).

    Updated after student step k = 1, 2, ... with teacher <- a teacher + (1 - a) student, a = min(1 - 1/(k+1), alpha):
    a plain mean of the first students, then a window of about 1 / (1 - alpha) steps. This equals the released order
    (update before step t = k with a_t = min(1 - 1/(t+1), alpha)). No gradient ever; dropout and drop path are off.

    State, in the checkpoint: its weights and the number of updates.

    Args:
        student: what to copy.
        alpha: upper bound of the share that stays, in [0, 1).
        norm: `copied`: batch norms use the student's running statistics, copied at each update, so that the teacher's
            label of an image does not depend on its batch companions. `batch`: as released, statistics of the current
            batch in training and running statistics of its own in evaluation. The same for networks without batch norm.
    """

    def __init__(self, student: Network, *, alpha: float = 0.999, norm: TeacherNorm = "copied") -> None:
        super().__init__()
        if not 0 <= alpha < 1:
            raise AdaptSegError(f"model.alpha is {alpha}; the teacher's share that stays is expected inside [0, 1)")
        if norm not in ("copied", "batch"):
            raise AdaptSegError(f"model.teacher_norm is '{norm}'; 'copied' or 'batch' is expected")
        self.alpha, self.norm = alpha, norm
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.updates = 0
        self._pairs: _Pairs | None = None
        self.train()

    def train(self, mode: bool = True) -> EMATeacher[Network]:
        super().train(mode and self.norm == "batch")
        for module in self.network.modules():
            if isinstance(module, (_DropoutNd, DropPath)):
                module.eval()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMATeacher[Network]:
        self._pairs = None  # moving a module gives it new buffers
        return super()._apply(fn, recurse)

    def share(self, update: int) -> float:
        """What stays of the teacher in its `update`-th update, counted from 1."""
        return min(1 - 1 / (update + 1), self.alpha)

    @torch.no_grad()
    def update(self, student: Network) -> None:
        """Move towards the student; call once after each of its steps."""
        self.updates += 1
        if self._pairs is None or self._pairs.student is not student:
            self._pairs = _Pairs.of(self.network, student)
        pairs = self._pairs
        get_ema_multi_avg_fn(self.share(self.updates))(pairs.own_parameters, pairs.parameters, None)
        if self.norm == "copied" and pairs.statistics:
            torch._foreach_copy_(pairs.own_statistics, pairs.statistics)  # pyright: ignore[reportPrivateImportUsage]

    @torch.no_grad()
    def logits(self: EMATeacher[Segmenter], images: Tensor) -> Tensor:
        """Logits (B, C, h, w) float32 at native stride of normalised images (B, 3, H, W)."""
        return self.network(images).logits.float()

    def get_extra_state(self) -> dict[str, int]:
        # Not a buffer: the share is arithmetic on the CPU, and reading a buffer would wait for the device.
        return {"updates": self.updates}

    def set_extra_state(self, state: Any) -> None:
        self.updates = int(state["updates"])


class _Pairs(NamedTuple):
    """What an update reads and writes. Looked up once: walking through two networks takes longer than the update."""

    student: nn.Module
    own_parameters: tuple[Tensor, ...]
    parameters: tuple[Tensor, ...]
    own_statistics: tuple[Tensor, ...]
    statistics: tuple[Tensor, ...]

    @classmethod
    def of(cls, own: nn.Module, student: nn.Module) -> _Pairs:
        parameters = tuple(own.parameters()), tuple(student.parameters())
        return cls(student, *parameters, _statistics(own), _statistics(student))


def _statistics(network: nn.Module) -> tuple[Tensor, ...]:
    return tuple(
        buffer for module in network.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()
    )
