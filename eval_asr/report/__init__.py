"""A report that shows a person where the errors are: one HTML page, or markdown for a README."""

from eval_asr.report.html import write_html
from eval_asr.report.markdown import to_markdown, write_markdown
from eval_asr.report.plots import write_picture

__all__ = ["to_markdown", "write_html", "write_markdown", "write_picture"]
