from tests.support.fuser_fixtures import run, tokenizers

__all__ = ["run", "tokenizers"]
