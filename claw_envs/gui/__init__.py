"""Desktops: screenshots and an accessibility tree in, mouse and keyboard out."""
