"""This project's own results: a study, as its plan says, and the page that it ends in."""
