"""One LightningModule per method. Methods know nothing of acquisition: bought labels arrive in the batch."""

from adaptseg.methods.acceleration import Acceleration as Acceleration
from adaptseg.methods.adversarial import Adversarial as Adversarial
from adaptseg.methods.base import Method as Method
from adaptseg.methods.base import StepResult as StepResult
from adaptseg.methods.class_weights import GBW as GBW
from adaptseg.methods.class_weights import BatchBalance as BatchBalance
from adaptseg.methods.class_weights import ClassWeights as ClassWeights
from adaptseg.methods.class_weights import EffectiveNumber as EffectiveNumber
from adaptseg.methods.class_weights import FixedWeights as FixedWeights
from adaptseg.methods.class_weights import InverseFrequency as InverseFrequency
from adaptseg.methods.class_weights import MedianFrequency as MedianFrequency
from adaptseg.methods.denoising import Denoising as Denoising
from adaptseg.methods.discriminators import DiscriminatorTraining as DiscriminatorTraining
from adaptseg.methods.ensemble_student import EnsembleStudent as EnsembleStudent
from adaptseg.methods.entropy_minimization import EntropyMinimization as EntropyMinimization
from adaptseg.methods.frozen_features import FeatureDistance as FeatureDistance
from adaptseg.methods.head_training import HeadTraining as HeadTraining
from adaptseg.methods.lessons import Masking as Masking
from adaptseg.methods.lessons import TaughtMasking as TaughtMasking
from adaptseg.methods.optimization import Optimization as Optimization
from adaptseg.methods.output_adaptation import Auxiliary as Auxiliary
from adaptseg.methods.pixel_classifier import PixelClassifier as PixelClassifier
from adaptseg.methods.self_training import SelfTraining as SelfTraining
from adaptseg.methods.supervised import Supervised as Supervised
from adaptseg.methods.training import Training as Training
