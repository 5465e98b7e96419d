"""The report: `make_report` collects the facts of a run, `plots` draws them, `render` fills the templates. Nothing is measured here."""
