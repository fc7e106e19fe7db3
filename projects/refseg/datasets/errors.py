"""One exception for everything that is wrong with a user's data: it names the file, the record and the remedy."""


class DataError(ValueError):
    """Bad data. The message names the file, the record or field, and what to do."""
