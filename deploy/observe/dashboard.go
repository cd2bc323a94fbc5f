package observe

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Dashboard is one page of Grafana.
type Dashboard struct {
	Name     string // of its file, and part of its uid
	Title    string
	Instance string // metric whose instances can be chosen, "" for none
	Rows     []Row
}

// Row is a headed group of panels, placed side by side and then below.
type Row struct {
	Title  string
	Panels []Panel
}

// Kind is how a panel shows its queries.
type Kind string

// The kinds of panels.
const (
	Lines Kind = "timeseries"
	Now   Kind = "stat"
	Fill  Kind = "gauge"
)

// Panel shows queries. In a query, $instance are the chosen instances and
// $__rate_interval is a range that Grafana picks.
type Panel struct {
	Title   string
	Help    string
	Kind    Kind
	Unit    string  // Grafana's name of it: short, s, bytes, percentunit, ops
	Red     float64 // from here on it is red; 0 for never
	Queries []Query
}

// Query is a PromQL expression and what its series are called.
type Query struct{ Expr, Legend string }

// width and height of a panel on Grafana's grid, which is 24 wide.
func (p Panel) size() (w, h int) {
	if p.Kind == Lines {
		return 8, 7
	}
	return 4, 4
}

type object map[string]any

func source() object { return object{"type": "prometheus", "uid": "${datasource}"} }

// JSON is what Grafana imports. Each panel is one line.
func (d Dashboard) JSON() ([]byte, error) {
	head, err := json.MarshalIndent(object{
		"uid": "clustermesh-" + d.Name, "title": d.Title, "tags": []string{"clustermesh"}, "schemaVersion": 39, "editable": true,
		"refresh": "30s", "time": object{"from": "now-1h", "to": "now"}, "timezone": "browser", "graphTooltip": 1,
		"annotations": object{"list": []object{}}, "templating": object{"list": d.variables()},
		"links": []object{{"type": "dashboards", "title": "clustermesh", "tags": []string{"clustermesh"}, "asDropdown": true, "includeVars": true, "keepTime": true}},
	}, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("write dashboard %s: %w", d.Name, err)
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(head, []byte("\n}")))
	out.WriteString(",\n  \"panels\": [")
	for i, p := range d.panels() {
		line, err := json.Marshal(p)
		if err != nil {
			return nil, fmt.Errorf("write dashboard %s: %w", d.Name, err)
		}
		if i > 0 {
			out.WriteByte(',')
		}
		out.WriteString("\n    ")
		out.Write(line)
	}
	out.WriteString("\n  ]\n}\n")
	return out.Bytes(), nil
}

func (d Dashboard) variables() []object {
	all := []object{{"name": "datasource", "label": "Prometheus", "type": "datasource", "query": "prometheus", "refresh": 1}}
	if d.Instance != "" {
		query := "label_values(" + d.Instance + ", instance)"
		all = append(all, object{
			"name": "instance", "label": "Instance", "type": "query", "datasource": source(), "definition": query,
			"query": object{"query": query, "refId": "instance"}, "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*",
			"current": object{"text": "All", "value": "$__all"},
		})
	}
	return all
}

// panels places all rows.
func (d Dashboard) panels() []object {
	var all []object
	y := 0
	for _, r := range d.Rows {
		all = append(all, object{
			"id": len(all) + 1, "type": "row", "title": r.Title, "collapsed": false, "panels": []object{},
			"gridPos": object{"x": 0, "y": y, "w": 24, "h": 1},
		})
		y++
		x, tall := 0, 0
		for _, p := range r.Panels {
			w, h := p.size()
			if x+w > 24 {
				x, y, tall = 0, y+tall, 0
			}
			o := p.object(len(all) + 1)
			o["gridPos"] = object{"x": x, "y": y, "w": w, "h": h}
			all = append(all, o)
			x, tall = x+w, max(tall, h)
		}
		y += tall
	}
	return all
}

func (p Panel) object(id int) object {
	var targets []object
	for i, q := range p.Queries {
		targets = append(targets, object{
			"refId": string(rune('A' + i)), "datasource": source(), "expr": q.Expr, "legendFormat": q.Legend,
			"editorMode": "code", "range": p.Kind == Lines, "instant": p.Kind != Lines,
		})
	}
	return object{
		"id": id, "type": string(p.Kind), "title": p.Title, "description": p.Help, "datasource": source(), "targets": targets,
		"fieldConfig": object{"defaults": p.field(), "overrides": []object{}}, "options": p.options(),
	}
}

func (p Panel) field() object {
	steps := []object{{"color": "green", "value": nil}}
	if p.Red != 0 {
		steps = append(steps, object{"color": "red", "value": p.Red})
	}
	f := object{"unit": p.Unit, "min": 0, "thresholds": object{"mode": "absolute", "steps": steps}}
	if p.Kind == Fill {
		f["max"] = 1
	}
	if p.Kind == Lines {
		f["custom"] = object{"lineWidth": 1, "fillOpacity": 10, "showPoints": "never"}
	}
	return f
}

func (p Panel) options() object {
	if p.Kind == Lines {
		return object{
			"legend":  object{"displayMode": "list", "placement": "bottom", "showLegend": true},
			"tooltip": object{"mode": "multi", "sort": "desc"},
		}
	}
	return object{"reduceOptions": object{"calcs": []string{"lastNotNull"}, "fields": "", "values": false}}
}
