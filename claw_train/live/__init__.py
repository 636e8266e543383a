"""Learning while it is served: from a server's finished turns to the loop, and from the loop's weights back to the server."""
