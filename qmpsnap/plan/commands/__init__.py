"""Builders of steps: one function a QMP command, a wait, or an action on files; arguments are born here."""
