"""Defines the MLflow models: a selector's checkpoint, and the retriever that picks demonstrations for new questions."""
