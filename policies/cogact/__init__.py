"""The CogACT family: model, checkpoint layout, weights."""
