"""The requests and answers of the API, as pydantic models, and what they mean to the fuser."""
