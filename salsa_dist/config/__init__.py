"""Settings of a run: their schema, and reading them from a file and overrides."""

from salsa_dist.config.loading import explained, load_config, override, parse_config, read_yaml
from salsa_dist.config.schema import Config
from salsa_dist.config.sections.adapters import (
    AdapterConfig,
    AdapterSettings,
    MixConfig,
    SteeringConfig,
)
from salsa_dist.config.sections.base import BaseConfig
from salsa_dist.config.sections.data import AugmentConfig, DataConfig
from salsa_dist.config.sections.evaluation import Alike, DecodingConfig, EvaluationConfig, Normaliser
from salsa_dist.config.sections.method import (
    BeftMethod,
    BiasMethod,
    InContextMethod,
    LoraMethod,
    MeanDifferenceMethod,
    Method,
    SalsaMethod,
    ZeroShotMethod,
)
from salsa_dist.config.sections.placement import PlacementConfig
from salsa_dist.config.sections.section import Folder, Rule, Section, Shards
from salsa_dist.config.sections.training import HalvingConfig, TrainingConfig

__all__ = [
    "AdapterConfig",
    "AdapterSettings",
    "Alike",
    "AugmentConfig",
    "BaseConfig",
    "BeftMethod",
    "BiasMethod",
    "Config",
    "DataConfig",
    "DecodingConfig",
    "EvaluationConfig",
    "Folder",
    "HalvingConfig",
    "InContextMethod",
    "LoraMethod",
    "MeanDifferenceMethod",
    "Method",
    "MixConfig",
    "Normaliser",
    "PlacementConfig",
    "Rule",
    "SalsaMethod",
    "Section",
    "Shards",
    "SteeringConfig",
    "TrainingConfig",
    "ZeroShotMethod",
    "explained",
    "load_config",
    "override",
    "parse_config",
    "read_yaml",
]
