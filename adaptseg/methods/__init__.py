"""One LightningModule per method. Methods know nothing of acquisition: bought labels arrive in the batch."""

from adaptseg.methods.base import Method as Method
from adaptseg.methods.base import StepResult as StepResult
from adaptseg.methods.optimization import Optimization as Optimization
from adaptseg.methods.supervised import Supervised as Supervised
