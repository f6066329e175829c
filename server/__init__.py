"""HTTP and process edges: OpenAI API, configuration, command line."""

__version__ = "0.1.0"
