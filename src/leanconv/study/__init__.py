"""What each technique brought, on the user's own images: evidence that holds."""
