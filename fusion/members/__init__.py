"""The engines that run one checkpoint each, and how they are hosted."""
