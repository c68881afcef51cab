"""The routes, a family of paths a module."""
