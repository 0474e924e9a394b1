"""Several runs: trained side by side, compared, written into tables and a page."""
