"""What is served, described: an OpenAPI 3.1 document made from the routes' tables and the models' own signatures."""
