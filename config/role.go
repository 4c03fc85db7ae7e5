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

// writersKey is the setting that says who writes which tables.
const writersKey = "topology.writers"

// SplitWriters takes an element of Topology.Writers apart.
func SplitWriters(s string) (pattern string, nodes []string) {
	pattern, list, _ := strings.Cut(s, "=")
	return strings.TrimSpace(pattern), strings.Fields(list)
}

func (c *Config) checkWriters(ps *problems) {
	seen := map[string]bool{}
	for _, s := range c.Topology.Writers {
		pattern, nodes := SplitWriters(s)
		schema, table, qualified := strings.Cut(pattern, ".")
		switch {
		case len(nodes) == 0 || !qualified || schema == "" || table == "":
			ps.add(writersKey, "%q is not schema.table=nodes; write it like %q", s, "shop.price=a b")
		case seen[pattern]:
			ps.add(writersKey, "%q is given twice; keep one", pattern)
		}
		seen[pattern] = true
		for _, node := range nodes {
			_, known := c.Topology.Nodes[node]
			switch {
			case !known && len(c.Topology.Nodes) > 0:
				ps.add(writersKey, "%q in %q is not in topology.nodes; the names there are %s", node, s, c.nodeNames())
			case c.Reader(node):
				ps.add(writersKey, "%q in %q is a reader (topology.roles), whose users do not write; leave it out", node, s)
			}
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
