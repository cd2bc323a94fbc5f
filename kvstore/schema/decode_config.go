package schema

// maxConfigBytes bounds a cluster configuration; today's have 200 bytes.
const maxConfigBytes = 64 << 10

// DecodeClusterConfig decodes the value at [ClusterConfigKey](cluster). The
// export mode must be a known one; whether the id is legal and the cluster
// compatible is for [CheckCompatible]. The error is an *[Error].
func DecodeClusterConfig(cluster string, value []byte) (ClusterConfig, error) {
	d := configReader{newReader(ClusterConfigKey(cluster), value, maxConfigBytes)}
	var c ClusterConfig
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "id":
			d.once(&have, 0)
			c.ID = uint32(d.uint(1<<32 - 1))
		case "capabilities":
			d.once(&have, 1)
			c.Capabilities = d.capabilities()
		default:
			d.skip()
		}
	}
	if err := d.result(); err != nil {
		return ClusterConfig{}, err
	}
	return c, nil
}

type configReader struct{ reader }

func (d *configReader) capabilities() Capabilities {
	var c Capabilities
	var have seen
	for more := d.open('{'); more && d.more('}'); {
		switch string(d.name()) {
		case "syncedCanaries":
			d.once(&have, 0)
			c.SyncedCanaries = d.flag()
		case "cached":
			d.once(&have, 1)
			c.Cached = d.flag()
		case "maxConnectedClusters":
			d.once(&have, 2)
			c.MaxConnectedClusters = uint32(d.uint(1<<32 - 1))
		case "serviceExportsEnabled":
			d.once(&have, 3)
			c.ServiceExportsEnabled = d.optionalFlag()
		case "endpointSlicesExportMode":
			d.once(&have, 4)
			c.EndpointSlicesExportMode = d.oneOf("", ModeServicesAndEndpointSlices, ModeEndpointSlicesOnly)
		default:
			d.skip()
		}
	}
	return c
}

func (d *configReader) optionalFlag() *bool {
	if d.null() {
		return nil
	}
	v := d.flag()
	return &v
}
