"""Tables with columns of several kinds: guessed, numbered, and given back as rows."""
