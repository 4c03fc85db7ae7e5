package doctor

import (
	"fmt"
	"slices"
	"strings"
)

// privileges looks for what the role in postgres.dsn lacks to run a bridge. Capture has said whether it may replicate.
func privileges(f *Facts) []Finding {
	r := &f.Server.Role
	var all []Finding
	lacks := func(code string, s Severity, text, why, mend string) {
		all = append(all, Finding{code, s, fmt.Sprintf("role %s %s", r.Name, text), why, mend})
	}
	if !r.Replica {
		lacks("replica-role", Error, "may not set session_replication_role",
			"rows of other nodes must be written without firing triggers and foreign keys, which have done their work at the origin",
			"run GRANT SET ON PARAMETER session_replication_role TO "+r.Name)
	}
	if len(r.Functions) > 0 {
		lacks("origin-functions", Error, "may not call "+strings.Join(r.Functions, ", "),
			"each applied transaction bears the origin that wrote it: without, it would be sent back as a new one",
			fmt.Sprintf("run GRANT EXECUTE ON FUNCTION %s TO %s", strings.Join(r.Functions, ", "), r.Name))
	}
	if f.Config.Postgres.AutoSetup && !r.Create {
		lacks("database-create", Error, "may not create in database "+r.Database,
			"postgres.auto_setup is on: each start makes sure of schema and publication",
			fmt.Sprintf("run GRANT CREATE ON DATABASE %s TO %s; or set postgres.auto_setup: false, and run pgbridge setup --print-sql", r.Database, r.Name))
	}
	if !r.Owner {
		lacks("schema-owner", Error, "does not own schema pgbridge",
			"positions and tombstones are written there with each transaction",
			fmt.Sprintf("run what pgbridge setup --print-sql prints; it holds ALTER SCHEMA pgbridge OWNER TO %s", r.Name))
	}
	if r.Superuser {
		lacks("superuser", Note, "is a superuser", "a bridge needs none: whoever gets its password has the whole server",
			"give postgres.dsn a role of its own; pgbridge setup --print-sql prints its grants (docs/install.md)")
	}
	return all
}

// tablePrivileges looks for tables that the role may not read and write.
func tablePrivileges(f *Facts) []Finding {
	role := f.Server.Role.Name
	var lacking, schemas, secured, unowned []string
	for i := range f.Server.Tables {
		t := &f.Server.Tables[i]
		if len(t.Lacks) > 0 {
			lacking = append(lacking, t.Name)
		}
		if !t.Usage && !slices.Contains(schemas, t.Schema) {
			schemas = append(schemas, t.Schema)
		}
		if t.RowSecurity {
			secured = append(secured, t.Name)
		}
		if !t.Owned {
			unowned = append(unowned, t.Name)
		}
	}
	var all []Finding
	if len(lacking) > 0 || len(schemas) > 0 {
		var mend []string
		if len(schemas) > 0 {
			mend = append(mend, fmt.Sprintf("GRANT USAGE ON SCHEMA %s TO %s", strings.Join(schemas, ", "), role))
		}
		if len(lacking) > 0 {
			mend = append(mend, fmt.Sprintf("GRANT SELECT, INSERT, UPDATE, DELETE ON TABLE %s TO %s", strings.Join(lacking, ", "), role))
		}
		all = append(all, Finding{"table-privileges", Error, fmt.Sprintf("role %s may not read and write %s", role, few(append(lacking, schemas...))),
			"transactions of other nodes that write there wait, and with them all that their node writes later", "run " + strings.Join(mend, "; ")})
	}
	if len(secured) > 0 {
		all = append(all, Finding{"row-security", Error, fmt.Sprintf("row security hides rows of %s from role %s", few(secured), role),
			"a row that the role does not see can be neither updated nor deleted as the other nodes have it", fmt.Sprintf("run ALTER ROLE %s BYPASSRLS", role)})
	}
	if len(unowned) > 0 && f.Config.Postgres.AutoSetup {
		all = append(all, Finding{"new-tables", Note, fmt.Sprintf("role %s is no member of the owners of %s", role, few(unowned)),
			"only a table's owner can publish it: a table that is made later is replicated when its owner has run the statement that status prints",
			fmt.Sprintf("run GRANT owner TO %s, if new tables are to be replicated by themselves", role)})
	}
	return all
}

// few names the first of many.
func few(names []string) string {
	const most = 5
	if len(names) <= most {
		return strings.Join(names, ", ")
	}
	return fmt.Sprintf("%s and %d more", strings.Join(names[:most], ", "), len(names)-most)
}
