"""Laws to hold your own plug-ins to, each a class to subclass in a test."""
