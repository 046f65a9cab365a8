"""The textmill command. Talks to the services over HTTP; starts them, and real servers, on one machine."""
