package config

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Size is a number of bytes, written with a unit: "256KiB", "10GiB".
type Size int64

// derived stands for a size that was not given, until derive works it out.
const derived Size = -1

// The units of a [Size].
const (
	KiB Size = 1 << 10
	MiB Size = 1 << 20
	GiB Size = 1 << 30
	TiB Size = 1 << 40
)

// unit is one way to write a size or a part of a duration.
type unit struct {
	name  string
	times int64
}

// sizeUnits lists the largest first; "B" must come last, since every other name ends in it.
func sizeUnits() []unit {
	return []unit{{"TiB", int64(TiB)}, {"GiB", int64(GiB)}, {"MiB", int64(MiB)}, {"KiB", int64(KiB)}, {"B", 1}}
}

// String writes s in the largest unit that is exact: "256KiB", "0".
func (s Size) String() string {
	for _, u := range sizeUnits() {
		if s != 0 && int64(s)%u.times == 0 {
			return strconv.FormatInt(int64(s)/u.times, 10) + u.name
		}
	}
	return "0"
}

// parseSize reads what [Size.String] writes.
func parseSize(text string) (Size, error) {
	wrong := fmt.Errorf("%q is not a size; write a whole number with B, KiB, MiB, GiB or TiB, such as 256KiB", text)
	if text == "0" {
		return 0, nil
	}
	for _, u := range sizeUnits() {
		digits, ok := strings.CutSuffix(text, u.name)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(strings.TrimSuffix(digits, " "), 10, 63)
		if err != nil || int64(n) > math.MaxInt64/u.times {
			return 0, wrong
		}
		return Size(int64(n) * u.times), nil
	}
	return 0, wrong
}

const day = 24 * time.Hour

// ParseDuration reads Go's durations, with days in front: "5s", "1h30m", "30d", "1d12h".
func ParseDuration(text string) (time.Duration, error) {
	wrong := fmt.Errorf("%q is not a duration; write a number with ms, s, m, h or d, such as 5s", text)
	var days time.Duration
	rest := text
	if before, after, ok := strings.Cut(text, "d"); ok {
		n, err := strconv.ParseUint(before, 10, 32)
		if err != nil || n > uint64(math.MaxInt64/day) {
			return 0, wrong
		}
		days, rest = time.Duration(n)*day, after
		if rest == "" {
			return days, nil
		}
	}
	if rest == "" || rest == "0" || strings.HasPrefix(rest, "+") {
		return 0, wrong
	}
	d, err := time.ParseDuration(rest)
	if err != nil || d < 0 || d > math.MaxInt64-days {
		return 0, wrong
	}
	return days + d, nil
}

// formatDuration writes d as [ParseDuration] reads it, without zero parts: "30d", "1m", "1h30m".
func formatDuration(d time.Duration) string {
	days, rest := d/day, d%day
	var text string
	if days > 0 {
		text = strconv.FormatInt(int64(days), 10) + "d"
		if rest == 0 {
			return text
		}
	}
	clock := rest.String()
	if strings.HasSuffix(clock, "m0s") {
		clock = strings.TrimSuffix(clock, "0s")
	}
	if strings.HasSuffix(clock, "h0m") {
		clock = strings.TrimSuffix(clock, "0m")
	}
	return text + clock
}

// splitList reads "a, b,c"; empty parts are dropped.
func splitList(text string) []string {
	var parts []string
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part != "" {
			parts = append(parts, part)
		}
	}
	return parts
}

// splitMap reads "a=x,b=y". A value may be a list of URLs, with commas between.
func splitMap(text string) (map[string]string, error) {
	m := map[string]string{}
	last := ""
	for _, part := range splitList(text) {
		if last != "" && isURL(part, "nats", "tls") { // another one of a list
			m[last] += "," + part
			continue
		}
		name, value, ok := strings.Cut(part, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		if !ok || name == "" || value == "" {
			return nil, fmt.Errorf("%q is not name=value; write a=nats://host:4222,b=nats://host:4222", redactURL(part))
		}
		if _, twice := m[name]; twice {
			return nil, fmt.Errorf("%q is given twice", name)
		}
		m[name], last = value, name
	}
	return m, nil
}

// joinMap writes what splitMap reads.
func joinMap(m map[string]string) string {
	parts := make([]string, 0, len(m))
	for name, value := range m {
		parts = append(parts, name+"="+value)
	}
	slices.Sort(parts)
	return strings.Join(parts, ",")
}

// typeName is what the documentation calls the type behind a field pointer.
func typeName(field any) string {
	switch field.(type) {
	case *bool:
		return "true or false"
	case *int:
		return "number"
	case *Size:
		return "size"
	case *time.Duration:
		return "duration"
	case *[]string:
		return "list"
	case *map[string]string:
		return "map"
	case *map[string]Access:
		return "links"
	case *[]TablePolicy:
		return "policies"
	}
	return "text"
}

// decode stores the value that viper holds for a key: text from anywhere, or a list or map from the file.
func decode(field, raw any) error {
	switch value := raw.(type) {
	case []string:
		*field.(*[]string) = append([]string(nil), value...) // an empty list is none
		return nil
	case map[string]any:
		m := make(map[string]string, len(value))
		for name, text := range value {
			m[name] = text.(string)
		}
		return decodeMap(field, m)
	case string:
		return decodeText(field, value)
	}
	return fmt.Errorf("%T cannot be read", raw)
}

// decodeText parses text by the type of the field.
func decodeText(field any, text string) (err error) {
	switch p := field.(type) {
	case *string:
		*p = text
	case *bool:
		if text != "true" && text != "false" {
			return fmt.Errorf("%q is not allowed; use true or false", text)
		}
		*p = text == "true"
	case *int:
		if *p, err = strconv.Atoi(text); err != nil {
			return fmt.Errorf("%q is not a whole number", text)
		}
	case *Size:
		*p, err = parseSize(text)
	case *time.Duration:
		*p, err = ParseDuration(text)
	case *[]string:
		*p = splitList(text)
	case *map[string]string, *map[string]Access:
		var m map[string]string
		if m, err = splitMap(text); err == nil {
			err = decodeMap(field, m)
		}
	case *[]TablePolicy:
		*p, err = parsePolicies(text)
	}
	return err
}

// decodeMap stores names with values.
func decodeMap(field any, m map[string]string) (err error) {
	if len(m) == 0 {
		return nil
	}
	switch p := field.(type) {
	case *map[string]string:
		*p = m
	case *map[string]Access:
		*p, err = linksOf(m)
	}
	return err
}

// encode writes a field as decodeText reads it.
func encode(field any) string {
	switch p := field.(type) {
	case *string:
		return *p
	case *time.Duration:
		return formatDuration(*p)
	case *Size:
		return p.String()
	case *[]string:
		return strings.Join(*p, ",")
	case *map[string]string:
		return joinMap(*p)
	case *map[string]Access:
		return joinMap(linkTexts(*p))
	case *[]TablePolicy:
		return formatPolicies(*p)
	case *bool:
		return strconv.FormatBool(*p)
	case *int:
		return strconv.Itoa(*p)
	}
	return ""
}
