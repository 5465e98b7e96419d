"""The report: `data` says what is known, `plots` draws it, `render` puts both into the templates. None of them measures anything."""
