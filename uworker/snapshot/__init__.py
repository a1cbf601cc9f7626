"""The snapshot: an image of the local code, and the folder that starts it on other machines."""
