"""A comparison for people: one template and two vocabularies, as Markdown, as an HTML page and in the terminal."""

from lever_mlflow.report.figures import figures
from lever_mlflow.report.pages import explain, html, markdown, verdict
from lever_mlflow.report.terminal import summary

__all__ = ["explain", "figures", "html", "markdown", "summary", "verdict"]
