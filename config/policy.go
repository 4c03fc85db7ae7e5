package config

import (
	"fmt"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/pgbridge/pgbridge/conflict"
)

// In one line, as an environment variable or --set has it, policies are written
//
//	app.stock: quantity=delta, (street, zip)=last_writer_wins, .deletes=update_wins; app.price: .rows=origin_priority
//
// and in the file as a map. Names with other characters than letters, digits and _ stand in double quotes.

// The settings of a table beside its columns.
const (
	policyRows    = "rows"
	policyDeletes = "deletes"
	policyColumns = "columns"
)

// readPolicies reads conflict.tables from the file and returns it in one line.
func (d *document) readPolicies(key string, n *yaml.Node) any {
	var all []TablePolicy
	for i := 0; i+1 < len(n.Content); i += 2 {
		written, value := n.Content[i], resolve(n.Content[i+1])
		name := key + "." + written.Value
		d.lines[name] = written.Line
		p := TablePolicy{Match: written.Value}
		switch value.Kind {
		case yaml.ScalarNode:
			p.Rows = value.Value
		case yaml.MappingNode:
			d.readPolicy(name, value, &p)
		default:
			d.refuse(value, name, "wants a policy, such as first_writer_wins, or rows, deletes and columns below it")
		}
		all = append(all, p)
	}
	return formatPolicies(all)
}

func (d *document) readPolicy(name string, n *yaml.Node, p *TablePolicy) {
	for i := 0; i+1 < len(n.Content); i += 2 {
		written, value := n.Content[i], resolve(n.Content[i+1])
		switch field := written.Value; {
		case field == policyColumns && value.Kind == yaml.MappingNode:
			for c := 0; c+1 < len(value.Content); c += 2 {
				names, policy := value.Content[c], resolve(value.Content[c+1])
				if policy.Kind != yaml.ScalarNode {
					d.refuse(policy, name, "wants one policy for column %s, such as delta", names.Value)
					continue
				}
				p.Columns = append(p.Columns, ColumnPolicy{Names: splitList(names.Value), Policy: policy.Value})
			}
		case field == policyRows && value.Kind == yaml.ScalarNode:
			p.Rows = value.Value
		case field == policyDeletes && value.Kind == yaml.ScalarNode:
			p.Deletes = value.Value
		case field == policyColumns:
			d.refuse(value, name, "wants columns with policies below columns, such as quantity: delta")
		case field == policyRows || field == policyDeletes:
			d.refuse(value, name, "wants one policy for %s", field)
		default:
			d.refuse(written, name, "%q is unknown here; use rows, deletes or columns", field)
		}
	}
}

// formatPolicies writes policies in one line.
func formatPolicies(all []TablePolicy) string {
	var tables []string
	for _, p := range all {
		var parts []string
		if p.Rows != "" {
			parts = append(parts, "."+policyRows+"="+quoteWord(p.Rows))
		}
		if p.Deletes != "" {
			parts = append(parts, "."+policyDeletes+"="+quoteWord(p.Deletes))
		}
		for _, c := range p.Columns {
			names := make([]string, len(c.Names))
			for i, n := range c.Names {
				names[i] = quoteWord(n)
			}
			text := strings.Join(names, ", ")
			if len(names) != 1 {
				text = "(" + text + ")"
			}
			parts = append(parts, text+"="+quoteWord(c.Policy))
		}
		tables = append(tables, quoteWord(p.Match)+": "+strings.Join(parts, ", "))
	}
	return strings.Join(tables, "; ")
}

// isWordByte reports whether a byte of a name needs no quotes.
func isWordByte(b byte) bool {
	return b == '_' || b == '.' || b == '*' || b == '?' || b >= '0' && b <= '9' || b >= 'a' && b <= 'z' || b >= 'A' && b <= 'Z'
}

func quoteWord(s string) string {
	plain := s != "" && s[0] != '.'
	for i := range len(s) {
		plain = plain && isWordByte(s[i])
	}
	if plain {
		return s
	}
	return `"` + strings.ReplaceAll(s, `"`, `""`) + `"`
}

// parsePolicies reads what formatPolicies writes.
func parsePolicies(text string) ([]TablePolicy, error) {
	p := policyParser{rest: strings.TrimSpace(text)}
	var all []TablePolicy
	for p.rest != "" && p.err == nil {
		all = append(all, p.table())
		p.skip(";")
	}
	return all, p.err
}

// policyParser takes words off the front of rest. After the first error it returns nothing more.
type policyParser struct {
	rest string
	err  error
}

func (p *policyParser) fail(what string) {
	if p.err == nil {
		p.err = fmt.Errorf("%s before %q; write app.stock: quantity=delta, .deletes=update_wins; app.doc: body=text_merge", what, p.rest)
	}
	p.rest = ""
}

// skip takes a sign off, if it is there.
func (p *policyParser) skip(sign string) bool {
	rest, ok := strings.CutPrefix(p.rest, sign)
	if ok {
		p.rest = strings.TrimSpace(rest)
	}
	return ok
}

func (p *policyParser) expect(sign string) {
	if !p.skip(sign) {
		p.fail(fmt.Sprintf("%q is missing", sign))
	}
}

// word takes a name off.
func (p *policyParser) word() string {
	if p.skipQuote() {
		return p.quoted()
	}
	n := 0
	for n < len(p.rest) && isWordByte(p.rest[n]) {
		n++
	}
	w := p.rest[:n]
	if w == "" {
		p.fail("a name is missing")
	}
	p.rest = strings.TrimSpace(p.rest[n:])
	return w
}

func (p *policyParser) skipQuote() bool { return strings.HasPrefix(p.rest, `"`) }

func (p *policyParser) quoted() string {
	var b strings.Builder
	for s := p.rest[1:]; ; {
		at := strings.IndexByte(s, '"')
		if at < 0 {
			p.fail("a closing quote is missing")
			return ""
		}
		b.WriteString(s[:at])
		if s = s[at+1:]; !strings.HasPrefix(s, `"`) {
			p.rest = strings.TrimSpace(s)
			return b.String()
		}
		b.WriteByte('"')
		s = s[1:]
	}
}

func (p *policyParser) table() TablePolicy {
	t := TablePolicy{Match: p.word()}
	p.expect(":")
	for p.err == nil && p.rest != "" && p.rest[0] != ';' {
		switch {
		case !p.skipQuote() && p.skip("."+policyRows):
			p.expect("=")
			t.Rows = p.word()
		case !p.skipQuote() && p.skip("."+policyDeletes):
			p.expect("=")
			t.Deletes = p.word()
		default:
			t.Columns = append(t.Columns, p.column())
		}
		if !p.skip(",") {
			break
		}
	}
	if p.err == nil && p.rest != "" && p.rest[0] != ';' {
		p.fail(`"," or ";" is missing`)
	}
	return t
}

func (p *policyParser) column() ColumnPolicy {
	var c ColumnPolicy
	if p.skip("(") {
		for p.err == nil && !p.skip(")") {
			c.Names = append(c.Names, p.word())
			p.skip(",")
		}
	} else {
		c.Names = []string{p.word()}
	}
	p.expect("=")
	c.Policy = p.word()
	return c
}

// checkPolicies checks names and policies against each other; which columns there are the database tells.
func (c *Config) checkPolicies(ps *problems) {
	for _, name := range c.Conflict.Priority {
		if _, ok := c.Topology.Nodes[name]; !ok && len(c.Topology.Nodes) > 0 {
			ps.add("conflict.priority", "%q is not in topology.nodes; name nodes of the cluster", name)
		}
	}
	seen := map[string]bool{}
	for _, t := range c.Conflict.Tables {
		key := "conflict.tables." + t.Match
		if schema, table, ok := strings.Cut(t.Match, "."); !ok || schema == "" || table == "" {
			ps.add(key, "%q is not schema.table; write %q", t.Match, "public."+t.Match)
		}
		if seen[t.Match] {
			ps.add(key, "is given twice; keep one")
		}
		seen[t.Match] = true
		c.checkRule(ps, key, "rows", t.Rows, true)
		if _, err := conflict.DeletesByName(orDefault(t.Deletes)); err != nil {
			ps.add(key, "deletes: %v", err)
		}
		for _, col := range t.Columns {
			what := "column " + strings.Join(col.Names, ", ")
			if len(col.Names) == 0 {
				ps.add(key, "a group of columns is empty")
			}
			c.checkRule(ps, key, what, col.Policy, len(col.Names) != 1 || slices.Contains(col.Names, "*"))
		}
	}
}

// Policies are the settings, in one line each, that decide conflicts, by key: all nodes must have the same.
func (c *Config) Policies() map[string]string {
	all := map[string]string{}
	for _, k := range keys() {
		if strings.HasPrefix(k.name, "conflict.") || slices.Contains([]string{writersKey, residencyKey, rowsKey, columnsKey}, k.name) {
			all[k.name] = encode(k.field(c))
		}
	}
	return all
}

// SplitForeignKey takes an element of Conflict.ForeignKeys apart; policy is empty if there is none.
func SplitForeignKey(s string) (pattern, policy string) {
	at := strings.LastIndexByte(s, '=')
	if at < 0 {
		return s, ""
	}
	return strings.TrimSpace(s[:at]), strings.TrimSpace(s[at+1:])
}

// foreignKeyPolicies are what Conflict.ForeignKeys allows.
var foreignKeyPolicies = []string{"restore", "delete", "null", "keep"}

func (c *Config) checkForeignKeys(ps *problems) {
	seen := map[string]bool{}
	for _, s := range c.Conflict.ForeignKeys {
		pattern, policy := SplitForeignKey(s)
		switch {
		case !slices.Contains(foreignKeyPolicies, policy):
			ps.add("conflict.foreign_keys", "%q has no policy that is known; write schema.table.constraint=%s", s, strings.Join(foreignKeyPolicies, " or ="))
		case strings.Count(pattern, ".") < 2:
			ps.add("conflict.foreign_keys", "%q is not schema.table.constraint; write %q", pattern, pattern+".*="+policy)
		case seen[pattern]:
			ps.add("conflict.foreign_keys", "%q is given twice; keep one", pattern)
		}
		seen[pattern] = true
	}
}

// SplitHome takes an element of Conflict.Home or Conflict.HomeNodes apart; what is behind the sign is empty if there is none.
func SplitHome(s string) (what, means string) {
	what, means, _ = strings.Cut(s, "=")
	return strings.TrimSpace(what), strings.TrimSpace(means)
}

func (c *Config) checkHomes(ps *problems) {
	for key, list := range map[string][]string{"conflict.home": c.Conflict.Home, "conflict.home_nodes": c.Conflict.HomeNodes} {
		seen := map[string]bool{}
		for _, s := range list {
			what, means := SplitHome(s)
			schema, table, qualified := strings.Cut(what, ".")
			_, known := c.Topology.Nodes[means]
			switch {
			case key == "conflict.home" && (means == "" || !qualified || schema == "" || table == ""):
				ps.add(key, "%q is not schema.table=column; write it like %q", s, "shop.item=region")
			case key == "conflict.home_nodes" && (what == "" || !known && len(c.Topology.Nodes) > 0):
				ps.add(key, "%q does not end with a node in topology.nodes; write it like %q", s, "eu=a")
			case seen[what]:
				ps.add(key, "%q is given twice; keep one", what)
			}
			seen[what] = true
		}
	}
}

// checkRule checks a policy that, if picks is set, must pick one of the values and not make a new one.
func (c *Config) checkRule(ps *problems, key, what, policy string, picks bool) {
	name, function := SplitPolicy(orDefault(policy))
	rule, err := conflict.RuleByName(name)
	schema, called, qualified := strings.Cut(function, ".")
	switch {
	case err != nil:
		ps.add(key, "%s: %v", what, err)
	case rule == conflict.Function && (!qualified || schema == "" || called == ""):
		ps.add(key, "%s: function needs the function's name with its schema; write %q", what, "function app.merge_price")
	case rule != conflict.Function && function != "":
		ps.add(key, "%s: %q behind %s means nothing; leave it out", what, function, name)
	case picks && !rule.Groups():
		ps.add(key, "%s: %s is for a single column; use last_writer_wins, first_writer_wins, origin_priority, home_wins, manual or a function here", what, policy)
	case rule == conflict.Home && what != policyRows:
		ps.add(key, "%s: home_wins is for whole rows; give it as rows", what)
	case rule == conflict.Home && len(c.Conflict.Home) == 0:
		ps.add(key, "%s: home_wins needs conflict.home, the column that names a row's home", what)
	case rule == conflict.Priority && len(c.Conflict.Priority) == 0:
		ps.add(key, "%s: origin_priority needs conflict.priority, the nodes in their order", what)
	}
}

// SplitPolicy takes a policy such as "function app.merge_price" apart: its name, and the function that it calls, if it does.
func SplitPolicy(policy string) (name, function string) {
	name, function, _ = strings.Cut(policy, " ")
	return name, strings.TrimSpace(function)
}

// orDefault names the policy that counts where none is given.
func orDefault(policy string) string {
	if policy == "" {
		return "last_writer_wins"
	}
	return policy
}
