"""One LightningModule per method. Methods know nothing of acquisition: bought labels arrive in the batch."""

from adaptseg.methods.acceleration import Acceleration as Acceleration
from adaptseg.methods.base import Method as Method
from adaptseg.methods.base import StepResult as StepResult
from adaptseg.methods.class_weights import GBW as GBW
from adaptseg.methods.class_weights import ClassWeights as ClassWeights
from adaptseg.methods.class_weights import EffectiveNumber as EffectiveNumber
from adaptseg.methods.class_weights import FixedWeights as FixedWeights
from adaptseg.methods.class_weights import InverseFrequency as InverseFrequency
from adaptseg.methods.class_weights import MedianFrequency as MedianFrequency
from adaptseg.methods.distillation import Distillation as Distillation
from adaptseg.methods.duda import DUDA as DUDA
from adaptseg.methods.fine_tuning import FineTuning as FineTuning
from adaptseg.methods.frozen_features import FeatureDistance as FeatureDistance
from adaptseg.methods.frozen_teachers import ChannelFusion as ChannelFusion
from adaptseg.methods.frozen_teachers import Fusion as Fusion
from adaptseg.methods.frozen_teachers import Teacher as Teacher
from adaptseg.methods.inconsistency_weights import InconsistencyWeights as InconsistencyWeights
from adaptseg.methods.lessons import Masking as Masking
from adaptseg.methods.optimization import Optimization as Optimization
from adaptseg.methods.self_training import SelfTraining as SelfTraining
from adaptseg.methods.supervised import Supervised as Supervised
