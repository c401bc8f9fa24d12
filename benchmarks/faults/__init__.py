"""What goes wrong at sites, done on purpose."""
