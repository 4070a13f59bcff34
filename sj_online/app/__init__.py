"""The application: recipes, the parts they name, the loop that trains them, run directories and the command line."""
