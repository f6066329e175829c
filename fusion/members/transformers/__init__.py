"""The transformers engine: continuous batching over any causal language model."""

from fusion.members.engine import EngineKind

KIND = EngineKind(
    load="fusion.members.transformers.engine:TransformersEngine.load",
    examine="fusion.members.transformers.architecture:examine",
)
