"""Chat: sessions over one engine, and the commands that hold them."""
