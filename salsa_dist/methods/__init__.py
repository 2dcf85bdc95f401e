"""The method that is the subject, steering, and those that it is compared with; one file each."""
