"""Pure planning: intent + graph + files + features -> Plan, or a typed refusal."""
