"""From files or the web to characters, and from characters to ids."""
