package config

import (
	"maps"
	"slices"
	"strings"

	"github.com/pgbridge/pgbridge/topology"
)

// roles are the names of roles.
func roles() []string {
	return []string{topology.RoleReader, topology.RoleEdge, topology.RoleEdgeReader}
}

// Edge reports whether nobody can dial the node.
func (c *Config) Edge(node string) bool { return topology.IsEdge(c.Topology.Roles[node]) }

// Reader reports whether users of the node do not write.
func (c *Config) Reader(node string) bool { return topology.IsReader(c.Topology.Roles[node]) }

// The settings that name nodes for tables: who writes them, who has them, and who has which of their rows and columns.
const (
	writersKey   = "topology.writers"
	residencyKey = "topology.residency"
	rowsKey      = "topology.rows"
	columnsKey   = "topology.columns"
)

// SplitTableNodes takes an element of Topology.Writers or Topology.Residency apart.
func SplitTableNodes(s string) (pattern string, nodes []string) {
	pattern, list, _ := strings.Cut(s, "=")
	return strings.TrimSpace(pattern), strings.Fields(list)
}

func (c *Config) checkWriters(ps *problems) {
	c.checkTableNodes(ps, writersKey, c.Topology.Writers, func(s string, nodes []string) {
		for _, node := range nodes {
			if c.Reader(node) {
				ps.add(writersKey, "%q in %q is a reader (topology.roles), whose users do not write; leave it out", node, s)
			}
		}
	})
}

func (c *Config) checkResidency(ps *problems) {
	c.checkTableNodes(ps, residencyKey, c.Topology.Residency, func(s string, nodes []string) {
		if len(nodes) == 1 {
			ps.add(residencyKey, "%q names one node, and what only one has is not replicated; name two at least, or exclude it under tables there", s)
		}
	})
}

// checkTableNodes checks a setting that names nodes for tables; more checks the nodes of an element that is well written.
func (c *Config) checkTableNodes(ps *problems, key string, list []string, more func(s string, nodes []string)) {
	seen := map[string]bool{}
	for _, s := range list {
		pattern, nodes := SplitTableNodes(s)
		schema, table, qualified := strings.Cut(pattern, ".")
		switch {
		case len(nodes) == 0 || !qualified || schema == "" || table == "" || strings.HasPrefix(pattern, "!"):
			ps.add(key, "%q is not schema.table=nodes; write it like %q", s, "shop.price=a b")
			continue
		case seen[pattern]:
			ps.add(key, "%q is given twice; keep one", pattern)
		}
		seen[pattern] = true
		c.checkNamedNodes(ps, key, s, nodes)
		more(s, nodes)
	}
}

// checkNamedNodes checks the nodes that an element names.
func (c *Config) checkNamedNodes(ps *problems, key, s string, nodes []string) {
	for i, node := range nodes {
		_, known := c.Topology.Nodes[node]
		switch {
		case !known && len(c.Topology.Nodes) > 0:
			ps.add(key, "%q in %q is not in topology.nodes; the names there are %s", node, s, c.nodeNames())
		case slices.Contains(nodes[:i], node):
			ps.add(key, "%q is twice in %q; keep one", node, s)
		}
	}
}

// deriveTables leaves out of the node's tables what others have.
func (c *Config) deriveTables() {
	for _, s := range c.Topology.Residency {
		pattern, nodes := SplitTableNodes(s)
		if len(nodes) > 0 && strings.Contains(pattern, ".") && !slices.Contains(nodes, c.Node) && !slices.Contains(c.Tables, "!"+pattern) {
			c.Tables = append(c.Tables, "!"+pattern)
		}
	}
}

// nodeNames lists the nodes for errors.
func (c *Config) nodeNames() string {
	return strings.Join(slices.Sorted(maps.Keys(c.Topology.Nodes)), ", ")
}

// deriveEdges makes nodes of edges, which have no URL.
func (c *Config) deriveEdges() {
	for node := range c.Topology.Roles {
		if _, there := c.Topology.Nodes[node]; c.Edge(node) && !there && c.Topology.Nodes != nil {
			c.Topology.Nodes[node] = ""
		}
	}
}

// checkRoles checks the roles, and that every edge has neighbours that it can dial.
func (c *Config) checkRoles(ps *problems) {
	t := &c.Topology
	writers := len(t.Nodes)
	for _, node := range slices.Sorted(maps.Keys(t.Roles)) {
		entry, role := "topology.roles."+node, t.Roles[node]
		url, known := t.Nodes[node]
		switch {
		case !slices.Contains(roles(), role):
			ps.add(entry, "%q is not a role; use %s", role, orList(roles()))
		case !isName(node):
			ps.add(entry, "%q is not a name; %s", node, nameRule)
		case !known:
			ps.add(entry, "%q is not in topology.nodes; the names there are %s", node, c.nodeNames())
		case topology.IsEdge(role) && url != "":
			ps.add("topology.nodes."+node, "has a URL, and is an edge, which nobody dials; remove it here, or the role from topology.roles")
		}
		if known && topology.IsReader(role) {
			writers--
		}
	}
	if writers == 0 && len(t.Nodes) > 0 {
		ps.add("topology.roles", "every node is a reader, so that nobody writes; take the role from one")
	}
	c.checkEdges(ps)
}

func (c *Config) checkEdges(ps *problems) {
	g := c.Graph()
	for _, a := range g.Nodes() {
		for _, b := range g.Neighbours(a) {
			if a < b && g.Edge(a) && g.Edge(b) {
				ps.add("topology.roles", "%s and %s are linked, and both are edges, so that neither can dial the other one; link them through another node", a, b)
			}
		}
	}
	switch {
	case !c.Edge(c.Node):
	case !c.Embedded():
		ps.add("nats.url", "is not for an edge, whose stream is in the server inside its bridge; remove it")
	case c.NATS.Embedded.Listen != "":
		ps.add("nats.embedded.listen", "is not for an edge, whose server listens nowhere; remove it")
	}
}
