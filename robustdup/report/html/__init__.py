"""Pages for a browser, made from records alone: one folder that needs no network and no server."""

from robustdup.report.html.site import write_report

__all__ = ["write_report"]
