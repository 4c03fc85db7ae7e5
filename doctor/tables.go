package doctor

import (
	"fmt"
	"strings"

	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
)

// Rows of other nodes are written with session_replication_role = replica. These checks tell what then goes another way than
// where a user writes.

func triggers(f *Facts) []Finding {
	return byEnabled(f, func(t *Table) []Trigger { return t.Triggers }, "trigger",
		"it fires for users' writes here and not for rows that come from other nodes: what it writes into replicated tables comes with them",
		"run ALTER TABLE %s ENABLE ALWAYS TRIGGER %s, if it is to see other nodes' rows as well, such as to fill a table that is not replicated")
}

func rules(f *Facts) []Finding {
	return byEnabled(f, func(t *Table) []Trigger { return t.Rules }, "rule",
		"it rewrites users' statements here and not those that write rows of other nodes",
		"run ALTER TABLE %s ENABLE ALWAYS RULE %s, if it is to rewrite those as well")
}

func byEnabled(f *Facts, list func(*Table) []Trigger, what, why, mend string) []Finding {
	var all []Finding
	for i := range f.Server.Tables {
		t := &f.Server.Tables[i]
		for _, x := range list(t) {
			if x.Enabled == "O" {
				all = append(all, Finding{what + "-local", Note, fmt.Sprintf("%s %s of table %s fires for local writes only", what, x.Name, t.Name), why, fmt.Sprintf(mend, t.Name, x.Name)})
				continue
			}
			all = append(all, Finding{what + "-replica", Warning, fmt.Sprintf("%s %s of table %s fires for rows of other nodes, too", what, x.Name, t.Name),
				"what it writes then is part of the applied transaction, and is not sent on: each node must do the same by itself, or they differ; and if it fails, the transaction is parked",
				fmt.Sprintf("run ALTER TABLE %s ENABLE %s %s, unless it writes only what is not replicated", t.Name, strings.ToUpper(what), x.Name)})
		}
	}
	return all
}

// foreignKeys are not checked when rows of other nodes are written, nor do they act then.
func foreignKeys(f *Facts) []Finding {
	var all []Finding
	for i := range f.Server.Tables {
		t := &f.Server.Tables[i]
		for _, k := range t.ForeignKeys {
			switch {
			case k.From != "" && k.Action != "":
				all = append(all, Finding{"foreign-key-acts", Warning, fmt.Sprintf("foreign key %s of table %s, which is not replicated, refers to %s ON DELETE %s", k.Name, k.From, t.Name, k.Action),
					"when another node deletes the parent, that does not happen here: rows without a parent stay",
					fmt.Sprintf("replicate %s, too (tables), or delete such rows by a trigger on %s that is ENABLE ALWAYS", k.From, t.Name)})
			case k.From == "" && !k.ToOthers:
				all = append(all, Finding{"foreign-key-parent", Warning, fmt.Sprintf("foreign key %s of table %s refers to %s, which is not replicated", k.Name, t.Name, k.Parent),
					"rows come to other nodes without looking whether their parent is there",
					fmt.Sprintf("replicate %s, too (tables), or keep it the same on all nodes", k.Parent)})
			case k.From == "" && !handled(f.Config, t, k.Name):
				all = append(all, Finding{"foreign-key-orphans", Note, fmt.Sprintf("foreign key %s of table %s has no policy", k.Name, t.Name),
					"a row that is inserted on one node while its parent is deleted on another has no parent then, on every node",
					fmt.Sprintf("conflict: {foreign_keys: [%q]} (docs/conflicts.md); pgbridge orphans finds such rows", t.patternSchema+"."+t.patternTable+"."+k.Name+"=restore")})
			}
		}
	}
	return all
}

// handled reports whether a policy for orphans is configured for the foreign key.
func handled(cfg *config.Config, t *Table, name string) bool {
	for _, s := range cfg.Conflict.ForeignKeys {
		if pattern, _ := config.SplitForeignKey(s); capture.Matches(pattern, t.patternSchema, t.patternTable+"."+name) {
			return true
		}
	}
	return false
}
