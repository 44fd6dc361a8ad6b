"""Teacher to student: choose layers, cut, and train on."""
