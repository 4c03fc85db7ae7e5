package bridge

import (
	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/conflict"
)

// mergePolicies hands the configured policies to apply. Their names were checked when the configuration was read.
func mergePolicies(cfg *config.Config) []apply.MergePolicy {
	var all []apply.MergePolicy
	for _, t := range cfg.Conflict.Tables {
		p := apply.MergePolicy{Pattern: t.Match, Rows: ruleOf(t.Rows),
			Match: func(schema, table string) bool { return capture.Matches(t.Match, schema, table) }}
		if t.Deletes != "" {
			p.Deletes, _ = conflict.DeletesByName(t.Deletes)
		}
		for _, c := range t.Columns {
			p.Columns = append(p.Columns, apply.MergeColumns{Names: c.Names, Rule: ruleOf(c.Policy)})
		}
		all = append(all, p)
	}
	return all
}

// ruleOf is the rule of a name that was checked; none means that the later write wins.
func ruleOf(name string) conflict.Rule {
	if name == "" {
		return conflict.Latest
	}
	rule, _ := conflict.RuleByName(name)
	return rule
}
