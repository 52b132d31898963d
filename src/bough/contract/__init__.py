"""The contract of the API: the requests, messages and answers that client and service share.

A request is written once, as a class. The client sends an object of the class, the service's route is made
from the class, and so is the OpenAPI document. The package imports neither pydantic nor dataclasses: each
command of the command line loads a part of this package.
"""
