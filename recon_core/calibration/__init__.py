"""What is measured before imaging: noise covariance, virtual coils, coil maps."""
