"""The blind study: pairs of clips on a page, answers of raters, and what they prefer."""
