// A trustless IPFS gateway on loopback, of the JavaScript implementation's own packages: what it
// serves was made by them and not by ww. It is honest; the lying one is in test_lying_gateway.py.
//
//   node gateway.mjs        prints {"port": N}
//
// It is told what to do by lines of JSON on stdin, and answers each with a line:
//
//   {"add": PATH, "options": {...}}    add a file or a tree                 {"cid": CID}
//   {"load": CAR}                      take in the blocks of a CAR file     {"roots": [CID]}
//   {"write": CAR, "roots": [CID]}     write a CAR file with their DAGs     {"blocks": N}
//   {"read": CID[/PATH], "to": PATH}   write a file or a tree to disk       {}
//   {"forget": [CID]}                  remove blocks                        {}
//   {"hold": N}                        send N more bytes of bodies, then nothing and never an end
//   {"await": "held"}                  answered as soon as a body is held   {}
//   {"requests": true}                 what was asked for since the last time {"requests": [...]}
//
// It ends with its stdin, so that it never outlives the tests.
import { createReadStream, createWriteStream, lstatSync, mkdirSync, readdirSync, readlinkSync } from 'node:fs'
import { createServer } from 'node:http'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import { CarReader, CarWriter } from '@ipld/car'
import * as dagPb from '@ipld/dag-pb'
import { MemoryBlockstore } from 'blockstore-core'
import { exporter, walkPath } from 'ipfs-unixfs-exporter'
import { importer } from 'ipfs-unixfs-importer'
import { fixedSize } from 'ipfs-unixfs-importer/chunker'
import { balanced, flat, trickle } from 'ipfs-unixfs-importer/layout'
import { CID } from 'multiformats/cid'

const DAG_PB = 0x70
const IDENTITY = 0
const SHARD_PREFIX = 2 // hexadecimal digits before the name of a link of a sharded directory
const LAYOUTS = { balanced, flat, trickle }

const store = new MemoryBlockstore()

async function block (cid) {
  if (cid.multihash.code === IDENTITY) return cid.multihash.digest
  const parts = []
  for await (const part of store.get(cid)) parts.push(part)
  return Buffer.concat(parts)
}

// --- in and out ----------------------------------------------------------------------------------

function * candidates (path, name, metadata) {
  const stat = lstatSync(path)
  const kept = metadata.some(each => name.endsWith(`/${each}`))
    ? { mode: stat.mode & 0o7777, mtime: { secs: BigInt(Math.floor(stat.mtimeMs / 1000)) } }
    : {}
  if (stat.isSymbolicLink()) {
    yield { path: name, link: readlinkSync(path), ...kept }
  } else if (stat.isDirectory()) {
    yield { path: name, ...kept }
    for (const entry of readdirSync(path)) {
      yield * candidates(`${path}/${entry}`, `${name}/${entry}`, metadata)
    }
  } else {
    yield { path: name, content: createReadStream(path, { highWaterMark: 1 << 20 }), ...kept }
  }
}

// Beside the importer's own options: the size of a chunk, the layout of a file and the most children
// of a node of it, and the paths of what keeps its mode and its time.
async function add (path, { chunk, layout, width, metadata = [], ...options }) {
  if (chunk) options.chunker = fixedSize({ chunkSize: chunk })
  if (layout) options.layout = LAYOUTS[layout]({ maxChildrenPerNode: width })
  let last
  for await (const entry of importer(candidates(path, 'root', metadata), store, options)) last = entry
  return last.cid
}

async function load (file) {
  const car = await CarReader.fromIterable(createReadStream(file))
  for await (const { cid, bytes } of car.blocks()) await store.put(cid, bytes)
  return car.getRoots()
}

async function write (file, roots) {
  const seen = new Set()
  async function * blocks () {
    for (const root of roots) yield * dag(root, seen)
  }
  await pipeline(carBytes(roots, blocks()), createWriteStream(file))
  return seen.size
}

async function read (path, target) {
  const entry = await exporter(path, store)
  if (entry.type === 'directory') {
    mkdirSync(target)
    for await (const { name } of entry.entries()) await read(`${path}/${name}`, `${target}/${name}`)
  } else {
    await pipeline(Readable.from(entry.content()), createWriteStream(target))
  }
}

// --- walking -------------------------------------------------------------------------------------

// The blocks of a DAG, each parent before its children and each block once.
async function * dag (cid, seen, follow = () => true) {
  const key = cid.toV1().toString()
  if (seen.has(key)) return
  seen.add(key)
  const bytes = await block(cid)
  yield { cid, bytes }
  if (cid.code !== DAG_PB) return
  for (const link of dagPb.decode(bytes).Links) {
    if (follow(link)) yield * dag(link.Hash, seen, follow)
  }
}

// What the trustless gateway's specification calls the entity: of a directory, itself without what
// is in it; of a sharded one, all the nodes of which it is made.
async function follows (cid) {
  if (cid.code !== DAG_PB) return () => true
  const entry = await exporter(cid, store)
  if (entry.type !== 'directory') return () => true
  if (entry.unixfs.type !== 'hamt-sharded-directory') return () => false
  return link => link.Name.length === SHARD_PREFIX
}

async function * carBytes (roots, blocks) {
  const { writer, out } = CarWriter.create(roots)
  let failed
  const producing = (async () => {
    try {
      for await (const each of blocks) {
        // A block that is its own address belongs into no CAR.
        if (each.cid.multihash.code !== IDENTITY) await writer.put(each)
      }
    } catch (error) {
      failed = error
    }
    await writer.close()
  })()
  yield * out
  await producing
  if (failed) throw failed
}

// --- the gateway ---------------------------------------------------------------------------------

let requests = []
let allowance = Infinity
let tellHeld
let held = new Promise(resolve => { tellHeld = resolve })

async function * allowed (chunks) {
  for await (const chunk of chunks) {
    if (chunk.length > allowance) {
      yield chunk.subarray(0, allowance)
      allowance = 0
      // The bytes before this have been handed to the system by the time that somebody acts on it.
      setImmediate(tellHeld)
      await new Promise(() => {})
    }
    allowance -= chunk.length
    yield chunk
  }
}

// The CID at the end of a path, and every block that was needed to get there.
async function resolve (root, path) {
  const trail = new Map()
  const recording = {
    get: (cid, options) => {
      trail.set(cid.toV1().toString(), cid)
      return store.get(cid, options)
    }
  }
  let target = root
  if (path) {
    for await (const entry of walkPath(`${root}/${path}`, recording)) target = entry.cid
  }
  trail.delete(target.toV1().toString())
  return { target, trail: [...trail.values()] }
}

async function answer (request, response) {
  const url = new URL(request.url, 'http://gateway')
  const found = url.pathname.match(/^\/ipfs\/([^/]+)(?:\/(.*))?$/)
  if (!found) return refuse(response, 404, 'only /ipfs/ is served here')
  const accept = request.headers.accept ?? ''
  const format = url.searchParams.get('format') ??
    accept.match(/application\/vnd\.ipld\.(raw|car)/)?.[1]
  if (format !== 'raw' && format !== 'car') {
    return refuse(response, 406, 'this gateway leaves it to you to verify: ask for raw or car')
  }
  const root = CID.parse(found[1])
  const { target, trail } = await resolve(root, decodeURIComponent(found[2] ?? ''))
  const first = await block(target)
  const headers = {
    'cache-control': 'public, max-age=29030400, immutable',
    'x-content-type-options': 'nosniff',
    'x-ipfs-path': url.pathname
  }
  if (format === 'raw') {
    response.writeHead(200, {
      ...headers, 'content-type': 'application/vnd.ipld.raw', 'content-length': first.length
    })
    return pipeline(allowed([first]), response)
  }
  const scope = url.searchParams.get('dag-scope') ?? 'all'
  const follow = scope === 'all' ? undefined : scope === 'block' ? () => false : await follows(target)
  const seen = new Set()
  async function * blocks () {
    for (const cid of trail) yield * dag(cid, seen, () => false)
    yield * dag(target, seen, follow)
  }
  response.writeHead(200, {
    ...headers, 'content-type': 'application/vnd.ipld.car; version=1; order=dfs; dups=n'
  })
  return pipeline(allowed(carBytes([root], blocks())), response)
}

function refuse (response, status, text) {
  response.writeHead(status, { 'content-type': 'text/plain' })
  response.end(text)
}

const server = createServer((request, response) => {
  requests.push(`${request.method} ${request.url}`)
  answer(request, response).catch(error => {
    if (response.headersSent) return response.destroy()
    const missing = /not ?found|does not exist|no such/i.test(`${error.name} ${error.message}`)
    refuse(response, missing ? 404 : 400, error.message)
  })
})

// --- orders --------------------------------------------------------------------------------------

async function obey (order) {
  if (order.add) return { cid: String(await add(order.add, order.options ?? {})) }
  if (order.load) return { roots: (await load(order.load)).map(String) }
  if (order.write) return { blocks: await write(order.write, order.roots.map(cid => CID.parse(cid))) }
  if (order.read) return (await read(order.read, order.to), {})
  if (order.forget) {
    for (const cid of order.forget) await store.delete(CID.parse(cid))
    return {}
  }
  if (order.hold !== undefined) {
    held = new Promise(resolve => { tellHeld = resolve })
    allowance = order.hold
    return {}
  }
  if (order.await) return (await held, {})
  if (order.requests) {
    const asked = requests
    requests = []
    return { requests: asked }
  }
  throw new Error(`no such order: ${JSON.stringify(order)}`)
}

server.listen(0, '127.0.0.1', async () => {
  console.log(JSON.stringify({ port: server.address().port }))
  for await (const line of createInterface({ input: process.stdin })) {
    const said = await obey(JSON.parse(line)).catch(error => ({ error: String(error.stack) }))
    console.log(JSON.stringify(said))
  }
  process.exit()
})
