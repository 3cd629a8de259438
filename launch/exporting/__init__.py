"""Where the policy, the plan and the options of an export come from."""
