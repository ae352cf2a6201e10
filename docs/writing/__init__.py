"""What of the documents is made from the code: ``python -m docs.writing`` writes it, tests hold it to the code."""
