"""What happens to a request, a step a module."""
