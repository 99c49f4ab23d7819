"""Code that the commands in scripts/ share."""
